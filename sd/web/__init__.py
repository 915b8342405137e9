"""A face for it: jobs, an HTTP API and a page. Read from the top:

job           one job, its folder, and what can become of it
jobs          one queue, one worker for each device
worker        a worker in a process of its own, so that a crash costs one job
limits        how much a request may ask for
models        checkpoints, LoRAs and embeddings by name, never by path
masks         the webui's ways with a mask
drawing       a job of pictures, in the worker
teaching      a job that learns from pictures, likewise
work          all that a worker can do
asking        a job of pictures, asked for and checked
problems      errors as HTTP answers and on the console
webui_options the webui's options, by what they do to an image
options       what is chosen for all requests
webui_fields  fields and scripts of webui requests that this server does not have
webui         the bodies of AUTOMATIC1111's txt2img and img2img
webui_extras  images enlarged without a model, as its "extras" do
webui_lists   what its clients ask before they send anything
api           jobs over HTTP
sdapi         AUTOMATIC1111's HTTP API over the same jobs
proxies       what a reverse proxy says about the client
guard         who may come in

page_parts    what the page has that Gradio has not; its scripts and its look are in browser/
page_addons   LoRAs and embeddings in a prompt, with a LoRA's trigger words
page_form     what to generate, as widgets, and back
page_stage    how jobs look
page_follow   what all tabs do alike: errors, and which jobs are whose
page_keep     the form over a reload
page_gallery  what was generated, and its settings back into the form
page_draw     the tab that generates
page_teach    the tab that trains
page          both tabs, in the app

app           all of it together, closed unless it is opened
"""
