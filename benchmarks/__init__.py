"""Measuring: our speed and memory beside our peers', at the same size, dtype and threads, with the same random weights.

tasks           what is measured, and the random model that all sides share
peers           diffusers' and transformers' networks with our weights in them
openvino_peer   the same, converted to OpenVINO
teaching        a training step of a LoRA, ours and diffusers'
sides           who does the tasks: ours, as the textbook has it, diffusers, compiled, OpenVINO
results         what was measured of one task, and what follows from it
many            many prompts over several processes
measure         the turns, the pairs, the peaks
report          a table to read and a JSON file to keep
docs_page       docs/benchmarks/performance.md: every file that was kept, with its plot

And of drawing sooner and less exactly, with the bundled model:

approximations  guidance intervals, step caching and token merging beside the exact pictures of the same seeds
fewer_steps     which sampler at how many steps reaches what 50 steps of DDPM give
"""
