"""Scenes, objects on backgrounds with true captions: colors, cut-outs, grammar, rendering, tasks and their detector.

Reading order:

colors        color words measured, named and changed in OKLCH
cutouts       objects of the emoji packages as transparent images
vocabulary    the names, their plurals, and the combinations held out of training
backgrounds   flat colors, gradients and landscapes
wording       the contents of a scene, and every true caption
layout        the position of each object
grammar       from a seed to a scene: contents, caption, layout
render        scenes to images
sheets        images with their captions, for inspection
stream        training examples by number: scenes and single emoji
detector      a small detector of names, positions and colors
tasks         GenEval's six tasks on held-out combinations
attention     the share of a noun's cross-attention that lies on its object
attention_loss  a loss that draws this share towards all of it
turbo         a LoRA of the trained U-Net, with which it needs 4 steps
evaluation    these tasks from prompts to scores and sheets
"""
