"""Source code: folders of files, and git repositories."""
