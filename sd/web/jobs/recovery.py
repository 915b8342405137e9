"""After a kill: the images in a job's folder that its job.json does not name yet."""

from contextlib import suppress
from pathlib import Path

from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.utils.errors import UserError
from sd.utils.files import remove_orphans
from sd.web.jobs.job import Job


def clean_up(job: Job) -> None:
    """Remove what a killed process left half-written in a job's folder, and list the images that it did not record."""
    with suppress(OSError):
        for folder in [job.folder, *(path for path in job.folder.rglob("*") if path.is_dir())]:
            remove_orphans(folder)
    recover_images(job)


def recover_images(job: Job) -> None:
    """Add to the result every image of ours that the job saved and did not record.

    Between the saving of an image and its entry in job.json a kill may come. An image is ours where it has settings.
    """
    with suppress(OSError):
        for path in sorted(job.folder.glob("*.png")):
            if path.name not in job.result.get("files", ()):
                with suppress(UserError):  # a preview, or a file that a fault of the disk has cut short
                    add_image(job.result, path)


def add_image(result: dict, path: Path) -> None:
    text = read_infotext(path)
    seed = parse_infotext(text).get("Seed", "")
    entries = {"files": path.name, "images": path.name, "infotexts": text, "seeds": int(seed) if seed.isdigit() else 0}
    for key, value in entries.items():
        result[key] = [*result.get(key, ()), value]
