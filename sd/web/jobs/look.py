"""A job that generates one image and records how: its trace, for the tab "Look inside"."""

import json
from dataclasses import dataclass

from PIL import Image

from sd.cli.requests import GenerationRequest
from sd.pipeline.output import GenerationOutput
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.pipeline.trace import Trace
from sd.pipeline.tracing.document import trace_document
from sd.utils.errors import UserError
from sd.utils.images import from_tensor
from sd.web.jobs.generate import ImageGenerator, StepReporter
from sd.web.jobs.job import Job
from sd.web.jobs.queue import Tell

TRACE = "trace.json"  # the file's name, and "trace" in the result


@dataclass
class TraceRecorder:
    """A `Run` for jobs of the kind "look", with the checkpoint that `generator` keeps loaded."""

    generator: ImageGenerator

    def __call__(self, job: Job, tell: Tell) -> dict:
        """Return the result of an `ImageGenerator` with one image, and "trace", the name of its trace's file."""
        with self.generator.opened(job) as (pipe, start, result):
            settings, notes = first_image(GenerationSettings(**result["settings"]))
            result["settings"], result["notes"] = vars(settings), [*result["notes"], *notes]
            trace, reporter = Trace(), StepReporter(tell, pipe, job.folder)
            images = start.image, start.mask
            output = pipe.generate(settings, *images, reporter, control_images=start.control_images, trace=trace)
            if not trace.steps:
                raise UserError("the run has no step to look into: use a higher denoising strength.")
            self.generator.save_images(output, job, GenerationRequest(settings, job.request["title"]).prefix, result)
            image = decoded(pipe, output, settings)
            document = trace_document(trace, output.latents[:1], image, settings.prompt, output.infotexts[0])
            (job.folder / TRACE).write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
        return result | {"files": [*result["files"], TRACE], "trace": TRACE}


def first_image(settings: GenerationSettings) -> tuple[GenerationSettings, list[str]]:
    """Return settings for the first image's first pass alone, and a note on each thing that is left out."""
    notes = []
    if settings.num_images > 1:
        notes.append(f"a trace is of one image: the first of {settings.num_images} was generated.")
    if settings.hires_scale > 1:
        notes.append("a trace is of the first pass: the second one (hires fix) is left out.")
    return settings.replace(num_images=1, hires_scale=1.0), notes


def decoded(pipe: StableDiffusion, output: GenerationOutput, settings: GenerationSettings) -> Image.Image:
    """Return the image that the latent was decoded to: the output's, unless that is pasted into a larger one."""
    return from_tensor(pipe.decode(output.latents[:1]))[0] if settings.only_masked else output.images[0]
