"""The settings of a published model's processor: how its images and its sound are prepared."""

from pathlib import Path

from lm import saving, strangers
from lm.strangers import check_inside, content

FILES = ("preprocessor_config.json", "processor_config.json", "chat_template.json")


def copy_processor(source: Path, to: Path) -> None:
    """Copy the files that are in the folder `source` into the folder `to`."""
    for name in FILES:
        if (source / name).is_file():
            check_inside(source, source / name)
            saving.write(to / name, content(source / name, strangers.SETTINGS))
