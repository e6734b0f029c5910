"""A person's own notes, files and exchanges: encrypted, searched, cited in answers, and learnt from, without a network."""
