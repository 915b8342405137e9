"""How a job looks: its progress and what is coming, then what came of it."""

from html import escape

from sd.web.job import Job

STATES = {
    "queued": "Waiting for its turn",
    "cancelled": "Cancelled",
    "interrupted": "Interrupted",
    "failed": "Failed",
}


def stage(job: Job) -> str:
    """HTML, made anew after each step."""
    if job.has_ended:
        return frame(job, status(job), made(job))
    if "preview" not in job.event:
        return frame(job, status(job))
    address = f"{address_of(job, job.event['preview'])}?{job.event['step']}"
    return frame(job, status(job), f'<img class="preview" src="{address}" alt="Preview">')


def frame(job: Job, sentence: str, *parts: str) -> str:
    """How far it is, unless it has ended; a sentence about it, as text; below these the parts, as HTML."""
    head = "" if job.has_ended else bar(job)
    said = f'<p class="status" role="status" data-state="{job.state}">{escape(sentence)}</p>'
    return f'<div class="stage">{head}{said}{"".join(parts)}</div>'


def bar(job: Job) -> str:
    value = "" if job.state == "queued" else f' value="{job.progress:.3f}"'
    return f'<progress max="1"{value} aria-label="Progress"></progress>'


def status(job: Job) -> str:
    event = job.event
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


def duration(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 1), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def made(job: Job) -> str:
    """The job's pictures, each a button that picks it."""
    names = job.result.get("images", [])
    texts = job.result.get("infotexts", [])
    return f'<div class="made">{"".join(thumb(job, *each) for each in zip(names, texts))}</div>'


def thumb(job: Job, name: str, text: str) -> str:
    label = escape(text.partition("\n")[0][:200])
    return (
        f'<button type="button" data-picture="{job.id}/{escape(name)}" aria-label="{label}" title="{label}">'
        f'<img src="{address_of(job, name)}" alt="" loading="lazy"></button>'
    )


def address_of(job: Job, name: str) -> str:
    return escape(f"/jobs/{job.id}/files/{name}")
