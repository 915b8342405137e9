"""All samplers and schedules, and the names that other programs have for them.

`find_sampler` reads a name as this program means it. `find_foreign_sampler` reads the names in other programs' files,
where "Automatic" or a missing schedule means that program's choice.
"""

import inspect
import re
from functools import partial

from sd.pipeline.sampling.cfgpp import ddim_cfgpp, euler_cfgpp
from sd.pipeline.sampling.dpm_solver import dpm_adaptive, dpm_fast
from sd.pipeline.sampling.extra_samplers import (
    deis,
    dpm2_a,
    dpmpp_2m_sde_heun,
    dpmpp_2s_a,
    dpmpp_3m_sde,
    ipndm,
    lms,
    restart,
    tcd,
)
from sd.pipeline.sampling.schedules import ALL_SCHEDULES
from sd.samplers import SAMPLERS, Sampler
from sd.utils.errors import UserError

# Their schedules are those that their first programs choose for them. The webui runs both DPM solvers with eta 1.
EXTRA_SAMPLERS = {
    "dpm2_a": Sampler(dpm2_a, "DPM2 a", schedule="karras"),
    "dpmpp_2s_a": Sampler(dpmpp_2s_a, "DPM++ 2S a", schedule="karras"),
    "dpmpp_2m_sde_heun": Sampler(dpmpp_2m_sde_heun, "DPM++ 2M SDE Heun", schedule="exponential"),
    "dpmpp_3m_sde": Sampler(dpmpp_3m_sde, "DPM++ 3M SDE", schedule="exponential"),
    "lms": Sampler(lms, "LMS", schedule="normal"),
    "ipndm": Sampler(ipndm, "IPNDM", schedule="normal"),
    "deis": Sampler(deis, "DEIS", to_zero=False, schedule="sgm_uniform"),
    "dpm_fast": Sampler(partial(dpm_fast, eta=1.0), "DPM fast", to_zero=False, schedule="normal"),
    "dpm_adaptive": Sampler(partial(dpm_adaptive, eta=1.0), "DPM adaptive", to_zero=False, schedule="normal"),
    "restart": Sampler(restart, "Restart", schedule="karras"),
    "ddim_cfgpp": Sampler(ddim_cfgpp, "DDIM CFG++", to_zero=False),
    "euler_cfgpp": Sampler(euler_cfgpp, "Euler CFG++", schedule="normal"),
    "tcd": Sampler(tcd, "TCD", to_zero=False, schedule="lcm"),
}
ALL_SAMPLERS = SAMPLERS | EXTRA_SAMPLERS
CFG_PLUS_PLUS = ("ddim_cfgpp", "euler_cfgpp")  # these need `cfgpp.UncondGuidance` for their denoiser

ETA_SAMPLERS = tuple(name for name, one in ALL_SAMPLERS.items() if "eta" in inspect.signature(one.run).parameters)

# Other programs' names, where ours, normalized, is not the same already.
OTHER_NAMES = {
    "pndm": "plms",
    "dpmsolver": "dpmpp_2m",
    "dpmsolverpp": "dpmpp_2m",
    "dpmsolversde": "dpmpp_sde",
    "dpmad": "dpm_adaptive",
    "unipcbh2": "unipc",
}
OTHER_SCHEDULES = {
    "uniform": "ldm",
    "leading": "ldm",
    "discrete": "normal",
    "linspace": "normal",
    "ddim": "ddim_uniform",
    "k": "karras",
    "ka": "karras",
    "automatic": "",
    "default": "",
    "native": "",
}
# What the webui 1.10 takes for "Automatic"; for all others it is "Uniform", which is our "normal".
WEBUI_SCHEDULES = {
    "dpmpp_2m": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2s_a": "karras",
    "dpm2": "karras",
    "dpm2_a": "karras",
    "restart": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_2m_sde_heun": "exponential",
    "dpmpp_3m_sde": "exponential",
}
# These take their own times in the webui and in diffusers, whatever the schedule's name.
FIXED_TIMES = ("ddim", "ddim_cfgpp", "plms", "ddpm", "unipc", "lcm", "tcd", "deis")


def normalize_name(name: str) -> str:
    """Reduce a name to what its variants share: "DPM++ 2M" is "dpmpp2m", "KDPM2AncestralDiscreteScheduler" "dpm2a"."""
    letters = re.sub("[^a-z0-9]", "", name.lower().replace("++", "pp"))
    letters = letters.replace("ancestral", "a").removesuffix("gpu")
    return re.sub("^k(?=euler|heun|dpm|lms)|(discrete|multistep)?scheduler$", "", letters)


def find_sampler(name: str, schedule: str = "") -> tuple[str, str]:
    """Return (sampler, schedule) for a name of ours or of another program, such as the webui, ComfyUI or diffusers.

    "DPM++ 2M Karras", "k_euler_a", "euler discrete", "dpmpp_2s_ancestral", "LMSDiscreteScheduler" and "kdpm_2_a_k" are
    such names. schedule: its name where that is given apart ("SGM Uniform"). It takes precedence over one at the end of
    `name`, and that over the sampler's own. Raises UserError, with the names that exist, for a name that does not.
    """
    found, ending = split_name(name)
    wanted = normalize_name(schedule) or ending
    schedules = schedule_names()
    if wanted and wanted not in schedules:
        raise UserError(f"unknown schedule {schedule!r}; choose from {', '.join(ALL_SCHEDULES)}.")
    return found, schedules.get(wanted) or ALL_SAMPLERS[found].schedule


def schedule_names() -> dict[str, str]:
    """Map every known name of a schedule, normalized, to our name for it, or "" for the sampler's own."""
    return {normalize_name(known): known for known in ALL_SCHEDULES} | OTHER_SCHEDULES


def split_name(name: str) -> tuple[str, str]:
    """Return our sampler for a name, and the normalized schedule at the name's end, or "". Raises UserError."""
    samplers = {normalize_name(known): known for known in ALL_SAMPLERS} | OTHER_NAMES
    key = normalize_name(name)
    if key in samplers:
        return samplers[key], ""
    for ending in sorted(schedule_names(), key=len, reverse=True):
        if key.endswith(ending) and key.removesuffix(ending) in samplers:
            return samplers[key.removesuffix(ending)], ending
    raise UserError(f"unknown sampler {name[:100]!r}; choose from {', '.join(ALL_SAMPLERS)}.")


def find_foreign_sampler(name: str, schedule: str = "", missing: str = "automatic") -> tuple[str, str]:
    """Return (sampler, schedule) for names from another program's file, as the webui 1.10 understands them.

    "Automatic" is the webui's choice for the sampler; "Uniform" is even in time from 999 to 0. missing: what no
    schedule at all means, "automatic" or "uniform". Samplers with times of their own keep them.
    Raises UserError as `find_sampler` does.
    """
    found, _ = find_sampler(name, schedule)
    wanted = normalize_name(schedule) or split_name(name)[1] or missing
    if schedule_names()[wanted] == "":
        wanted = WEBUI_SCHEDULES.get(found, "uniform")
    if wanted in ("uniform", "discrete"):
        return found, ALL_SAMPLERS[found].schedule if found in FIXED_TIMES else "normal"
    return found, schedule_names()[wanted]
