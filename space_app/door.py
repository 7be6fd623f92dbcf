"""How requests come in: each waits its turn in a bounded queue, its inputs are checked, and its work can be stopped.

Gradio's queue lets `AT_ONCE` requests of the line "network" compute and `WAITING` wait, those of all lines together;
more are refused with a message. Events can be called from anywhere, with other inputs than the page itself sends.
"""

import functools
import inspect
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import gradio as gr
from bounded_work import AT_ONCE, Work
from fastapi.responses import JSONResponse
from gradio.context import Context, LocalContext
from gradio.route_utils import FnIndexInferError
from gradio.server_messages import ProcessCompletedMessage
from pictures import friendly, seconds, status_of
from starlette.requests import ClientDisconnect

WAITING = 32  # requests; more are refused
THREADS = 8  # of the server, for files and pages; and as many for inputs and outputs
SESSIONS = 256  # browsers and clients of which something is remembered
LINE = {"concurrency_id": "network", "concurrency_limit": AT_ONCE, "trigger_mode": "once"}
ON_EXAMPLE = {"api_visibility": "private"}  # of an event that follows the choice of an example
TO_RESULT = "(...values) => { showResult(); return values; }"  # see page.js

running: dict[Work, tuple] = {}  # -> (session, name of the event) of whom it is done for

# ---- events --------------------------------------------------------------------------------------------------------


def compute_on(event, prepare, inputs, outputs, api_name: str, **options):
    """Let an event compute: through the queue, with its progress shown, and until it is stopped; the event itself.

    Args:
        event: of a component, such as `button.click`, or `then` of another event.
        prepare: function of the inputs' values that gives a `Work`.
        inputs, outputs: components; if one of the outputs is a Markdown, it says how far the work is.
        api_name: of the event on the first page; see `on_this_page`. `stop_on` takes it, too.
        options: of the event.
    """

    api_name = on_this_page(api_name)

    @functools.wraps(prepare)  # its parameters are those of the API
    def run(*values):
        work = prepare(*values)
        request = LocalContext.request.get(None)
        running[work] = request and request.session_hash, api_name
        try:
            for _ in work:
                yield with_status(outputs, status_of(work), work.state)
            if work.result is None:
                yield with_status(outputs, f"Stopped at {work.share:.0%}, after {seconds(work.seconds)}.", work.state)
            else:
                values = work.show(work)
                yield values if len(values) > 1 else values[0]
        finally:
            del running[work]

    run.__signature__ = inspect.signature(prepare)
    status = [output for output in outputs if isinstance(output, gr.Markdown)]
    # A loading state would lie over what is seen, and fade it; the status says how far the work is.
    place = {"show_progress": "hidden", "js": TO_RESULT} if status else {}
    return event(run, inputs, outputs, api_name=api_name, **LINE, **(place | options))


def on_this_page(api_name: str) -> str:
    """An event's name on the page that is being built: "generate" on the first, "cifar10-ve_generate" on another."""
    page = Context.root_block.current_page
    return f"{page}_{api_name}" if page else api_name


def with_status(outputs, text: str, values=None):
    """What an event yields: `text` for the status and `values` for the other outputs, or no change of them."""
    values = iter(values or [gr.skip()] * len(outputs))
    mixed = [text if isinstance(output, gr.Markdown) else next(values) for output in outputs]
    return mixed if len(mixed) > 1 else mixed[0]


def random_on(event, draw, outputs, api_name: str, api_visibility="private"):
    """Let an event put what `draw(work)` gives, a value or one for each of several outputs, into its outputs."""

    def prepare():
        return Work(draw, lambda work: work.result if len(outputs) > 1 else [work.result])

    return compute_on(event, prepare, None, outputs, api_name, api_visibility=api_visibility)


def stop_on(event, *api_names: str) -> None:
    """Let an event end what its user's session has under way by these names.

    It doesn't go through the queue, which it is there to shorten. Gradio's own way, `cancels`, breaks the event off:
    its last outputs are lost and the page shows errors.
    """

    api_names = tuple(map(on_this_page, api_names))

    async def stop(request: gr.Request):
        for work, (session, name) in list(running.items()):
            if session == request.session_hash and name in api_names:
                work.stop()
        queue = LocalContext.blocks.get()._queue
        for line in queue.event_queue_per_concurrency_id.values():
            for waiting in [*line.queue]:
                if waiting.session_hash == request.session_hash and waiting.fn.api_name in api_names:
                    await queue.remove_from_queue(waiting._id)
                    output = {"data": with_status(waiting.fn.outputs, "Stopped before it began.")}
                    queue.send_message(waiting, ProcessCompletedMessage(output=output, success=True))

    event(stop, None, None, api_name="stop", queue=False, api_visibility="private", show_progress="hidden")


# ---- inputs --------------------------------------------------------------------------------------------------------


def check_value(component, value) -> None:
    """Refuse what the page itself can't send: a text where a number is meant, a file that nobody uploaded.

    Raises:
        gr.Error: that names the component and the value.
    """
    if isinstance(component, (gr.Number, gr.Slider)):
        if type(value) not in (int, float) or value - value != 0:  # infinite or no number
            raise friendly(f"{component.label} must be a number, but is {shown(value)}.")
        if component.maximum is not None and value > component.maximum:
            raise friendly(f"{component.label}: {value} is greater than maximum value {component.maximum}.")
        if component.minimum is not None and value < component.minimum:
            raise friendly(f"{component.label}: {value} is less than minimum value {component.minimum}.")
    elif isinstance(component, (gr.Dropdown, gr.Radio)):
        if type(value) is not str:
            raise friendly(f"{component.label} must be one of the choices, but is {shown(value)}.")
        if value not in (choices := [choice for _, choice in component.choices]):
            raise friendly(f"{component.label} must be one of {', '.join(choices)}, but is {shown(value)}.")
    elif isinstance(component, gr.Checkbox):
        if type(value) is not bool:
            raise friendly(f"{component.label} must be true or false, but is {shown(value)}.")
    elif isinstance(component, gr.Dataset):
        if type(value) is not int or not 0 <= value < len(component.samples):
            raise friendly(f"There is no example {shown(value)}.")
    else:
        for path in paths_in(value):
            if not Path(path).resolve().is_relative_to(Path(component.GRADIO_CACHE).resolve()):
                raise friendly(f"{component.label} must be an uploaded file, but is {shown(path)}.")


def paths_in(value) -> list[str]:
    """The files of this machine that a nested value names."""
    if isinstance(value, list):
        return [path for part in value for path in paths_in(part)]
    if not isinstance(value, dict):
        return []
    path = value.get("path")
    here = isinstance(path, str) and not path.startswith(("http://", "https://"))
    return [*([path] if here else []), *paths_in([part for part in value.values() if not isinstance(part, str)])]


def shown(value) -> str:
    """A value in a message."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_inputs(app: gr.Blocks) -> None:
    """Let an app answer inputs that can't be read by a message, whichever event they are for."""
    read = app.preprocess_data

    async def preprocess_data(function, inputs, *arguments, **options):
        for component, value in zip(function.inputs, inputs, strict=False):
            check_value(component, value)
        try:
            return await read(function, inputs, *arguments, **options)
        except gr.Error as error:  # of a component that looks at bounds and choices
            raise friendly(error.message) from None
        except Exception:  # whatever components make of what they don't expect
            needed = ", ".join(component.label or "an example" for component in function.inputs) or "none"
            raise friendly(f"The inputs can't be read. These are needed: {needed}.") from None

    app.preprocess_data = preprocess_data


# ---- limits --------------------------------------------------------------------------------------------------------


def guarded(app: gr.Blocks) -> gr.Blocks:
    """A finished app with its queue and its checks."""
    for function in app.fns.values():
        if not function.api_name.startswith("stop"):
            function.queue = True  # what `gr.Examples` declares, too
    check_inputs(app)
    return app.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


# Of requests that name no event, or not its parameters, or break off.
UNREADABLE = (FnIndexInferError, LookupError, TypeError, ValueError, ClientDisconnect)


async def unreadable(request, error) -> JSONResponse:
    """The answer to a request of which Gradio can make nothing."""
    return JSONResponse({"detail": "This can't be read. The events and their parameters: /gradio_api/info"}, 400)


@asynccontextmanager
async def few_threads(server):
    """Bounds the threads in which the server answers what goes through no queue."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


LIMITS = {  # of `gr.Blocks.launch`
    "max_threads": THREADS,
    "state_session_capacity": SESSIONS,
    "app_kwargs": {
        "lifespan": few_threads,
        "exception_handlers": dict.fromkeys(UNREADABLE, unreadable),
    },
}
