"""The packages of the wheel: `sd`, the scripts as `sd_scripts`, and the bundled weights as data of `sd`.

All else is in pyproject.toml, which cannot name packages that lie in folders of other names.
"""

from setuptools import find_namespace_packages, setup

BUNDLED = ("emoji", "emoji-clip", "emoji-edges", "emoji-turbo")

setup(
    packages=[
        *find_namespace_packages(include=["sd", "sd.*"], exclude=["*.__pycache__"]),
        "sd.weights",
        "sd_scripts",
    ],
    package_dir={"sd.weights": "weights", "sd_scripts": "scripts"},
    package_data={
        "sd": ["py.typed"],
        "sd.data": ["*.gz", "*.tsv", "*.json", "*.csv", "README.md"],
        "sd.data.wildcards": ["*.txt"],
        "sd.web.ui.browser": ["*.js", "*.css"],
        "sd.web.live.browser": ["*.html", "*.js", "*.css"],
        "sd.web.live.onnxruntime": ["*"],
        "sd.weights": ["README.md", *(f"{name}.safetensors" for name in BUNDLED)],
    },
)
