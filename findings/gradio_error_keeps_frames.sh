#!/usr/bin/env bash
# Expected: what a function of a page holds (an image, an array) is freed when the function ends, also with an error.
# gradio keeps the error in a frame of the error's own traceback: with it stays all that the frames below hold, the
# function's own, until Python searches for cycles.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment gradio==6.31.0 gradio_client==2.7.2
export GRADIO_ANALYTICS_ENABLED=False HF_HUB_OFFLINE=1
"$PYTHON" - <<'PYTHON'
import gc
import weakref

import gradio as gr
from gradio_client import Client


class Picture:
    """Stands for what takes memory."""


kept = {"answer": weakref.WeakSet(), "error": weakref.WeakSet()}


def ask(end):
    picture = Picture()
    kept[end].add(picture)
    if end == "error":
        raise gr.Error("no such class", print_exception=False)
    return end


with gr.Blocks(analytics_enabled=False) as page:
    text = gr.Textbox()
    gr.Button().click(ask, text, text, api_name="ask")
page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
client = Client(page.local_url, verbose=False)
gc.collect()
gc.disable()
for end in ("answer", "error") * 3:
    try:
        client.predict(end, api_name="/ask")
    except Exception as error:
        assert "no such class" in str(error), error
before = {end: len(pictures) for end, pictures in kept.items()}
gc.collect()
after = {end: len(pictures) for end, pictures in kept.items()}
print(f"pictures left of 3 answers and 3 errors: {before}; after a search for cycles: {after}")
assert before == {"answer": 0, "error": 3}
assert after["error"] <= 1 and after["answer"] == 0
page.close(verbose=False)
PYTHON
