"""Samplers and schedules by the names that other programs give them."""

import re

from sd.samplers import SAMPLERS
from sd.schedule import SCHEDULES
from sd.utils.errors import UserError

# Other people's names, where ours, squashed, is not the same already.
OTHER_NAMES = {
    "pndm": "plms",
    "eulerancestral": "euler_a",
    "dpmsolver": "dpmpp_2m",
    "dpmsolversde": "dpmpp_sde",
    "dpmppsdegpu": "dpmpp_sde",
    "dpmpp2msdegpu": "dpmpp_2m_sde",
}
OTHER_SCHEDULES = {"uniform": "ldm", "normal": "ldm", "discrete": "ldm", "automatic": "", "default": "", "native": ""}


def squash(name):
    """What spellings have in common: "DPM++ 2M" becomes "dpmpp2m"; "k_dpm_2" and "KDPM2DiscreteScheduler", "dpm2"."""
    letters = re.sub("[^a-z0-9]", "", name.lower().replace("++", "pp"))
    return re.sub("^k(?=euler|heun|dpm)|(discrete|multistep)?scheduler$", "", letters)


def find_sampler(name: str, schedule: str = "") -> tuple[str, str]:
    """(name, schedule) in our spelling, from the webui's, diffusers' or k-diffusion's: "DPM++ 2M Karras", "k_euler_a".

    schedule: its name where that comes apart ("SGM Uniform"). It goes before one at the end of `name`, and that before
    the sampler's own. Raises UserError, with the names that exist, for a name that does not.
    """
    samplers = {squash(known): known for known in SAMPLERS} | OTHER_NAMES
    schedules = {squash(known): known for known in SCHEDULES} | OTHER_SCHEDULES
    key, wanted = squash(name), squash(schedule)
    for ending in schedules:
        if key not in samplers and key.endswith(ending):
            key, wanted = key.removesuffix(ending), wanted or ending
    if key not in samplers:
        raise UserError(f"there is no sampler called {name!r}; known are {', '.join(SAMPLERS)}")
    if wanted and wanted not in schedules:
        raise UserError(f"there is no schedule called {schedule!r}; known are {', '.join(SCHEDULES)}")
    found = samplers[key]
    return found, schedules.get(wanted) or SAMPLERS[found].schedule
