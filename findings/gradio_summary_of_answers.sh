#!/usr/bin/env bash
# Expected: a page that is launched with enable_monitoring=False and without analytics keeps nothing about its answers.
# gradio records the last 10000 and has pandas make a summary of all of them behind every single one.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment gradio==6.31.0 gradio_client==2.7.2 pandas==3.1.1
export GRADIO_ANALYTICS_ENABLED=False HF_HUB_OFFLINE=1
"$PYTHON" - <<'PYTHON'
import gradio as gr
from gradio.queueing import Queue
from gradio_client import Client

summarized, make = [], Queue._get_df


def counted(records):
    summarized.append(len(records))
    return make(records)


Queue._get_df = staticmethod(counted)
with gr.Blocks(analytics_enabled=False) as page:
    text = gr.Textbox()
    gr.Button().click(lambda value: value, text, text, api_name="echo")
page.launch(enable_monitoring=False, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
client = Client(page.local_url, verbose=False)
for number in range(8):
    client.predict(str(number), api_name="/echo")
kept = len(page._queue.event_analytics)
print(f"8 answers: {kept} are kept, tables were made of {summarized} of them")
assert kept == 8 and len(summarized) >= 7 and summarized == sorted(summarized)
assert page._queue.ANALYTICS_MAX_EVENTS == 10000
page.close(verbose=False)
PYTHON
