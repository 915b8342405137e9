"""Benchmarks of speed and memory against other implementations, with equal size, dtype, threads and random weights.

tasks              the tasks, and the model with random weights that all backends share
backends           the implementations: ours, ours without patches, diffusers, compiled diffusers, OpenVINO
diffusers_backend  diffusers' and transformers' networks with our weights in them
openvino_backend   the same networks, converted to OpenVINO
onnxruntime_backend    our networks, exported to ONNX
lora_step          one training step of a LoRA, ours and diffusers'
multi_process      many prompts over several processes
runner             the rounds, the ratios, the peaks of memory
gpu_list           all that is to be measured on a GPU, in ten minutes
terminal           measure, print and write
results            the measurements of one task, and the figures computed from them
report             the table on the terminal and the JSON file of results
docs_page          docs/benchmarks/performance.md, made from every stored JSON file

Two modules measure approximations with the bundled model:

approximations     guidance intervals, step caching and token merging, against exact images of the same seeds
sampler_steps      the number of steps at which each sampler reaches the quality of 50 steps of DDPM
"""
