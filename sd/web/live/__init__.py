"""The page /live, which generates in the browser itself: the model as ONNX files, and our sampler in JavaScript.

model    the model's files, exported once into the cache
routes   the addresses of the page

`browser/` holds the page and its scripts: `sampler.js` is sd/schedule.py, sd/denoiser.py and sd/samplers.py, `noise.js`
is torch's generator, `worker.js` runs both with the networks, `live.js` is the form. `onnxruntime/` is onnxruntime-web.
"""
