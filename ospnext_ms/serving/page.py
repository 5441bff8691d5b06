"""The web page: a form, the job that it made, and all that was made. Every word a client gave is escaped."""

import html

import gradio as gr

from ospnext_ms.reporting.progress import format_seconds
from ospnext_ms.serving.desk import CannotKeep, QueueFull
from ospnext_ms.serving.requests import read_request

# Of the machine that shows the page: nothing is fetched from elsewhere.
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.osp video { width: 100%; max-width: 512px; background: #000; }
.osp .bar { height: 1em; max-width: 512px; background: #ddd; border-radius: 4px; overflow: hidden; }
.osp .bar div { height: 100%; background: #4a7; }
.osp .gallery { display: flex; flex-wrap: wrap; gap: 1em; }
.osp .gallery figure { width: 240px; margin: 0; }
.osp .settings { font-size: 0.85em; opacity: 0.8; overflow-wrap: anywhere; }
.osp .error { color: #b00; }
"""
POLL_SECONDS = 0.5
SHOWN = 40
CLICKS = 64


def make_page(desk, config) -> gr.Blocks:
    """The page for a desk.Desk, with the values and limits of a ServeConfig."""
    sampling, video, limits = config.sampling, config.video, config.serve
    sizes = [f"{width}x{height}" for width, height in config.sizes]
    adapters = ["", *(adapter.name for adapter in limits.adapters)]
    with gr.Blocks(title="ospnext_ms", analytics_enabled=False) as page:
        gr.Markdown("# Text to video")
        mine, shown = gr.State(None), gr.State(("", ""))
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(config.prompts.prompt or "", label="Prompt", lines=2, elem_id="prompt",
                                    max_length=limits.prompt_characters)
                negative = gr.Textbox(sampling.negative_prompt, label="Negative prompt",
                                      max_length=limits.prompt_characters)
                with gr.Row():
                    seed = gr.Number(sampling.seed, label="Seed (-1: drawn)", precision=0, elem_id="seed")
                    steps = gr.Slider(1, limits.max_steps, sampling.steps, step=1, label="Steps", elem_id="steps")
                    guidance = gr.Number(sampling.guidance, label="Guidance (1: off)", minimum=1)
                with gr.Row():
                    size = gr.Dropdown(sizes, value=sizes[0], label="Size")
                    frames = gr.Number(video.frames, label=f"Frames (4n + 1, at most {config.max_frames})", precision=0)
                    adapter = gr.Dropdown(adapters, value="", label="Adapter", visible=len(adapters) > 1)
                with gr.Row():
                    make = gr.Button("Make the video", variant="primary", elem_id="make")
                    cancel = gr.Button("Cancel", elem_id="cancel")
            with gr.Column():
                current = gr.HTML(elem_id="current", elem_classes="osp")
        gr.Markdown("## Made here")
        gallery = gr.HTML(elem_id="gallery", elem_classes="osp")

        def submit(*values):
            names = ("prompt", "negative_prompt", "seed", "steps", "guidance", "size", "frames", "adapter")
            given = dict(zip(names, values, strict=True))
            for name in ("seed", "steps", "frames"):
                given[name] = None if given[name] is None else int(given[name])
            try:
                return desk.submit(read_request(given, config)).job.id
            except (ValueError, QueueFull, CannotKeep) as error:
                raise gr.Error(str(error), print_exception=False) from error

        def stop(id):
            if id is not None:
                desk.cancel(id)

        def look(id, before):
            """What has changed on the page since `before`."""
            texts = (_current(desk.view(id) if id else None, id), _gallery(desk.views()))
            return texts, *(gr.skip() if text == old else text for text, old in zip(texts, before, strict=True))

        make.click(submit, [prompt, negative, seed, steps, guidance, size, frames, adapter], mine,
                   show_progress="hidden")
        cancel.click(stop, mine, None, show_progress="hidden")
        gr.Timer(POLL_SECONDS).tick(look, [mine, shown], [shown, current, gallery], show_progress="hidden",
                                    queue=False)
        page.load(look, [mine, shown], [shown, current, gallery], show_progress="hidden", queue=False)
    # Of clicks, which take no time; api_open=False closes the API that Gradio would put beside ours.
    return page.queue(max_size=CLICKS, api_open=False)


def _current(view, id):
    if view is None:
        return f"<p>{'It is gone.' if id else 'Nothing is being made for this page.'}</p>"
    job = view.job
    left = "" if view.seconds_left is None else f", about {format_seconds(view.seconds_left)} left"
    if job.state == "queued":
        return f"<p class='state'>Place {view.position} in the queue{left}</p>{_settings(job)}"
    if job.state == "in_progress":
        steps = job.settings["steps"]
        done = round(view.progress * steps)
        words = "Decoding" if done == steps else f"Step {done} of {steps}{left}"
        return (f"<p class='state'>{words}</p>"
                f"<div class='bar'><div style='width: {100 * view.progress:.0f}%'></div></div>{_settings(job)}")
    if job.state == "completed":
        return _video(job, "autoplay") + _settings(job)
    return f"<p class='state error'>{html.escape(job.error or 'Cancelled.')}</p>{_settings(job)}"


def _gallery(views):
    made = [view.job for view in reversed(views) if view.job.state == "completed"][:SHOWN]
    if not made:
        return "<p>Nothing yet.</p>"
    figures = "".join(f"<figure>{_video(job, '')}{_settings(job)}</figure>" for job in made)
    return f"<div class='gallery'>{figures}</div>"


def _video(job, attributes):
    address = f"/v1/videos/{job.id}/content"
    return (f"<video src='{address}' controls loop muted playsinline preload='metadata' {attributes}></video>"
            f"<p><a href='{address}' download='{job.id}.mp4'>Download</a></p>")


def _settings(job):
    told = dict(job.settings)
    prompt = html.escape(told.pop("prompt"))
    words = ", ".join(f"{name.replace('_', ' ')} {html.escape(str(value))}" for name, value in told.items()
                      if value not in (None, ""))
    return f"<p class='settings'><b>{prompt}</b><br>{words}</p>"
