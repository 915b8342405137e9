"""Stable Diffusion 1.x by hand. A file imports only files that stand above it here, so read from the top:

errors            what a user can mend, said in one sentence

memory            free pages, given back to the system
attention         softmax(q k^T / sqrt(d)) v
tokenizer         a prompt to 77 numbers
clip              77 numbers to 77 vectors (and pictures to one vector, for scoring)
vae               a picture to a latent and back
taesd             the same, tiny and approximate, for previews
unet              a noisy latent, its time and the text to the noise in it

schedule          how much noise there is at each time
denoiser          the U-Net as a function (x, sigma) -> x0; guidance and masks around it
samplers          the walks from noise to picture

names             what diffusers calls our modules
mapped            files whose tensors stay in the file until they are used
pickle_objects    what stands for the objects that a pickle names
pickles           a careful reader of .ckpt, which builds nothing that is not on its list
families          which kind and family of model a file holds
weight_files      any file of weights, told by its contents
sizes             how large a model is
diffusers_folder  a checkpoint as diffusers keeps it
vae_files         a VAE by itself, in every layout
predictions       what a model's U-Net was trained to predict
checkpoint        weights in and out of every file people own
download          the v1-5 file from its mirror
clip_files        CLIP's own files, both towers, for scoring

prompt            (weights:1.3), BREAK and long prompts to one context
embedded_text     the texts that programs keep inside image files
image             pictures in and out
mask              which part of an image is regenerated
image_inputs      images as Python code holds them: paths, arrays, tensors
comfyui           the settings in a ComfyUI graph
foreign_metadata  settings as other programs write them, brought to the webui's labels
infotext          the settings kept inside a picture, as the webui writes them

packing           convolutions' weights in the order that the processor reads
fused_geglu       a gate applied while its sums are in registers
int8              products in 8 bits, which change the picture a little
shared_start      what cond and uncond share, once
tiled_attention   long self-attentions, a tile at a time
graphs            networks compiled for one GPU and size
in_turn           one network at a time on the GPU
optimize          such patches for speed, by name, on and off

lora_kinds        ways to write a change of a weight with few numbers
lora              such a change in a layer, and out again
lora_contents     what an adapter file holds
lora_dialects     every dialect of adapter file to one form
lora_files        an adapter file into a model, with a report
lora_save         an adapter to a file that other programs read
lora_tags         <lora:name:0.8> in a prompt
embedding_files   textual inversion files of every dialect
textual_inversion new words for the text encoder
model_hash        the name of a checkpoint in an image's settings
model_files       what one file or folder of a model holds
discovery         checkpoints, VAEs, LoRAs and embeddings by name
adapters          all adapters of one pipeline
adapter_calls     a pipeline's calls for its adapters, diffusers' names beside ours

seeds             noise by seed
seamless          pictures that tile
step_caching      the U-Net's deep part every few steps only, which is quicker and not quite the same
token_merging     places that look alike share one attention: quicker, likewise
tiled_vae         pictures too big for the VAE's memory
latents           pictures to scaled latents and back
start             where a drawing starts when there is a picture
infotext_fields   from the webui's labels to our settings, and what cannot be honored
settings          what a person asks for, checked
walk              from noise to a latent, down a list of noise levels
pipeline          all of it together: prompt in, pictures out
wildcards         __animal__ and {red|blue} in a prompt
styles            looks by name
chat              a question to a chat model, and no answer
prompt_writer     an idea to a prompt, a negative prompt and a title
drawings          every picture's own words
many              a share of the drawings for each process

cli               what the drawing scripts share
from_png          the settings inside an image, for generating it again

contact_sheet     a table of pictures, named at its sides
copies            did the model repeat a picture that it was taught
means             a mean and how far to trust it
evaluate          how like the subject, how like the prompt: CLIP-I and CLIP-T
compare           several models on the same prompts and seeds

Packages beside these, each with a reading order of its own: sd/training, which teaches; sd/web, the page and the HTTP
API; sd/benchmark, which measures all of it beside diffusers.
"""
