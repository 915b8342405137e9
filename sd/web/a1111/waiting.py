"""Waiting for a job, as the webui's API does: its answer is the result."""

from fastapi import HTTPException

from sd.web.jobs.job import Job
from sd.web.jobs.queue import Jobs
from sd.web.problems import NO_ROOM


async def wait_for_job(jobs: Jobs, id: str) -> Job:
    """Returns a job that is done or cancelled, once it is. Raises HTTPException for one that failed."""
    async for _ in jobs.changes(id):
        pass
    job = jobs.get(id)
    if job.state == "failed":
        raise HTTPException(422 if job.user_error else NO_ROOM if job.disk_error else 500, job.error)
    if job.state == "interrupted":
        raise HTTPException(503, job.error)
    return job
