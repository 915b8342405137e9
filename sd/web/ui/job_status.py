"""Jobs as HTML: progress and preview of the running job, the queue, and the results."""

from collections.abc import Callable
from html import escape

from sd.web.jobs.job import Job

STATES = {
    "queued": "Waiting for its turn",
    "cancelled": "Cancelled",
    "interrupted": "Interrupted",
    "failed": "Failed",
}
NOTHING = '<p class="empty">Your images appear here. Press Generate, or Ctrl+Enter in any field.</p>'
SHORT = 60  # characters of a prompt in the queue


def generation_panel(run: list[Job], before: Callable[[Job], int]) -> dict[str, str]:
    """Return HTML by place. run: jobs, oldest first. before(job): how many jobs come before it in the queue."""
    if not run:
        return {"head": NOTHING, "stop": "", "body": "", "queue": "", "made": ""}
    current = next((job for job in run if not job.has_ended), None)
    return {
        "head": status_head(run, current, before),
        "stop": cancel_button("Cancel", current) if current else "",
        "body": preview(current),
        "queue": queue(run, current, before),
        "made": result_images(run),
    }


def plain_status(job: Job, before: int = 0) -> str:
    """Return a sentence about a job. before: how many jobs come before it in the queue."""
    event = job.event
    if job.state == "queued":
        return f"{STATES['queued']}{queue_position(before)}"
    if job.state == "running" and "steps" not in event:
        return "Getting ready"
    if job.state == "running" and event["step"] == event["steps"]:
        return "Finishing"
    if job.state == "running":
        left = "" if job.eta is None else f", {duration(job.eta)} left"
        return f"Step {event['step']} of {event['steps']}{left}"
    if job.state == "done":
        return f"Done in {duration(job.ended - job.started)}"
    return f"{STATES[job.state]}: {job.error}" if job.error else STATES[job.state]


def status_head(
    run: list[Job],
    current: Job | None,
    before: Callable[[Job], int],
    status: Callable[[Job, int], str] = plain_status,
) -> str:
    """Return the progress bar and a sentence about the current job, then how the others ended, one line per ending."""
    lines = [] if current is None else [progress_bar(current) + status_line(current, status(current, before(current)))]
    endings: dict[str, list[Job]] = {}
    for job in sorted(run, key=lambda job: job.state != "done"):
        if job.state == "done" and current is None:
            endings.setdefault("Done", []).append(job)
        elif job.has_ended and job.state != "done":
            endings.setdefault(status(job, 0), []).append(job)
    return "".join([*lines, *(ending_line(text, jobs, len(run)) for text, jobs in endings.items())])


def ending_line(text: str, jobs: list[Job], total: int) -> str:
    """Return one line about jobs that ended alike, of `total` jobs."""
    if jobs[0].state == "done":
        text += f" in {duration(sum(job.ended - job.started for job in jobs))}"
    return status_line(jobs[-1], text + (f" ({len(jobs)} of {total} jobs)" if len(jobs) < total else ""))


def status_line(job: Job, sentence: str) -> str:
    return f'<p class="status" role="status" data-state="{job.state}">{escape(sentence)}</p>'


def progress_bar(job: Job) -> str:
    value = "" if job.state == "queued" else f' value="{job.progress:.3f}"'
    return f'<progress max="1"{value} aria-label="Progress"></progress>'


def cancel_button(words: str, *jobs: Job) -> str:
    return f'<button type="button" data-cancel="{" ".join(job.id for job in jobs)}">{words}</button>'


def queue_position(before: int) -> str:
    return "" if before == 0 else ": 1 job is before it" if before == 1 else f": {before} jobs are before it"


def duration(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 1), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def preview(job: Job | None) -> str:
    if job is None or "preview" not in job.event:
        return ""
    address = f"{address_of(job, job.event['preview'])}?{job.event['step']}"
    return f'<img class="preview" src="{address}" alt="Preview">'


def queue(run: list[Job], current: Job | None, before: Callable[[Job], int]) -> str:
    """Return the list of waiting jobs, each with its place and a button to cancel it."""
    waiting = [job for job in run if not job.has_ended and job is not current]
    if not waiting:
        return ""
    rows = [
        f"<li><span>{escape(title(job))}</span> <small>In the queue{escape(queue_position(before(job)))}</small>"
        f"{cancel_button('Cancel', job)}</li>"
        for job in waiting
    ]
    every = cancel_button("Cancel all that wait", *waiting) if len(waiting) > 1 else ""
    return f'<ol class="queue" aria-label="Waiting">{"".join(rows)}</ol>{every}'


def title(job: Job) -> str:
    text = job.request.get("name") or job.request.get("settings", {}).get("prompt", "")
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"


def result_images(run: list[Job]) -> str:
    """Return the images of all jobs, each a button that opens it, and the jobs' notes."""
    thumbs = [thumb(job, *each) for job in run for each in images_of(job)]
    return f'<div class="made" data-count="{min(len(thumbs), 4)}">{"".join(thumbs)}</div>{result_notes(run)}'


def result_notes(run: list[Job]) -> str:
    """Return the list of the jobs' notes, each once; "" where there are none."""
    notes = dict.fromkeys(note for job in run for note in job.result.get("notes") or ())
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes" aria-label="Notes">{items}</ul>' if items else ""


def images_of(job: Job) -> list[tuple[str, str]]:
    """Return pairs of a file name and the image's settings as text."""
    return list(zip(job.result.get("images", ()), job.result.get("infotexts", ())))


def thumb(job: Job, name: str, text: str) -> str:
    label = escape(text.partition("\n")[0][:200])
    return (
        f'<button type="button" data-image="{job.id}/{escape(name)}" aria-label="{label}" title="{label}">'
        f'<img src="{address_of(job, name)}" alt="" loading="lazy"></button>'
    )


def address_of(job: Job, name: str) -> str:
    """Return a relative URL, so that the page works below any path."""
    return escape(f"jobs/{job.id}/files/{name}")
