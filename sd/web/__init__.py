"""The web server: the job queue, the HTTP APIs and the page. Read from the top:

jobs/
  job            a job, its folder and its states
  queue          the queue, with one worker for each device
  limits         the limits of a request
  file_reader    strangers' files, read in a process of its own
  model_index    checkpoints, LoRAs and embeddings by name, never by path
  masks          the webui's mask options
  job_file       job.json, checked as it is read
  recovery       images that a kill left without an entry
  generate       a job that generates images, in the worker
  finetune       a job that trains an embedding or a LoRA, in the worker
  worker         a worker in a process of its own, so that a crash ends one job
  submit         from a request to a job in the queue, validated
  upscale        enlarging uploaded images: at once with a filter, as a job with a model
  api            jobs over HTTP
problems         errors as HTTP answers and on the console
a1111/
  webui_options  the webui's options, by their effect on an image
  options        options that are set for all requests
  fields         fields and scripts of webui requests that this server does not support
  schema         the bodies of AUTOMATIC1111's txt2img and img2img
  extras         enlarging images, the webui's "extras"
  waiting        the answer of a job that a request waits for
  lists          what clients ask before their first request
  api            AUTOMATIC1111's HTTP API over the same jobs
attempts         wrong passwords, and the bodies that are arriving
proxies          the headers of a reverse proxy
security         hosts, origins, password and size of every request
ui/
  components     parts of the page that Gradio does not have; their scripts and styles are in browser/
  addons         LoRAs and embeddings in a prompt, with a LoRA's trigger words
  gate           which of Gradio's addresses the page uses, and what its events may hold
  form           the request as widgets, and back
  job_status     jobs as HTML
  follow         what both tabs share: errors, and which jobs belong to which page
  keep           the form over a reload
  gallery        the images, and their settings back into the form
  generate_tab   the tab that generates
  train_tab      the tab that trains
  page           both tabs, in the app
live/
  model          the bundled model as ONNX files, exported once
  routes         the page that generates in the browser
server           all of it together; it admits this machine only, unless flags say otherwise
"""
