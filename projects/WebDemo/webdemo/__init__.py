"""A web page for `tagclip.TagCLIPPredictor`.

`session` is what a visitor asks for, `result` what the page shows of it; both need no gradio.
"""
