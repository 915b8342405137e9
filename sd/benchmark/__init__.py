"""Measuring: our speed and memory beside diffusers', at the same size, dtype and threads, with the same random weights.

peers    diffusers' and transformers' networks with our weights in them
tasks    what is measured: each task as we do it and as they do it
measure  the turns, the pairs, the peaks
report   a table to read and a JSON file to keep

And of drawing sooner and less exactly, with the bundled model:

approximations  guidance intervals, step caching and token merging beside the exact pictures of the same seeds
fewer_steps     which sampler at how many steps reaches what 50 steps of DDPM give
"""
