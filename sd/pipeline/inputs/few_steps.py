"""Notes on LoRAs for few steps (LCM, TCD, Hyper-SD, the bundled turbo one) beside settings for many."""

import re
from collections.abc import Iterable

from sd.prompts.prompt_adapters import name_in_prompt

# In a LoRA's name: files have no mark of it. "Turbo" alone may be a car's.
FEW_STEPS = re.compile(r"(?<![a-z])(lcm|tcd|hyper[-_ ]?sd\d*|emoji-turbo)(?![a-z])", re.IGNORECASE)
KEEPS_GUIDANCE = re.compile(r"(?<![a-z])cfg(?![a-z])", re.IGNORECASE)  # Hyper-SD's "8steps-CFG"
MOST_GUIDANCE = 2.5  # such LoRAs work up to about 2


def few_step_notes(loras: Iterable[str], guidance_scale: float) -> list[str]:
    """Returns a note for each LoRA that is for few steps, by its name, where guidance would make its images harsh.

    Guidance is distilled into such a LoRA, so that a second one on top of it exaggerates.
    """
    if guidance_scale <= MOST_GUIDANCE:
        return []
    names = dict.fromkeys(name_in_prompt(name) for name in loras)
    return [
        f"the LoRA {name} is for few steps, by its name, and images get harsh with it at a guidance scale of "
        f"{guidance_scale:g}: use 1, 4 to 8 steps, and the sampler lcm or tcd."
        for name in names
        if FEW_STEPS.search(name) and not KEEPS_GUIDANCE.search(name)
    ]
