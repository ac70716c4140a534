#!/usr/bin/env bash
# Expected: a class that is built of a CfgNode, as all of detectron2's are, comes back from
# ModelHubMixin's save_pretrained and from_pretrained with a CfgNode, or is refused. A CfgNode is a
# dict, which json takes: the whole of it becomes config.json, and the constructor gets a plain dict.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment huggingface_hub==2.4.0 yacs==0.1.8
"$PYTHON" - <<'PYTHON'
from pathlib import Path

from huggingface_hub import ModelHubMixin
from yacs.config import CfgNode


class Model(ModelHubMixin):
    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def _save_pretrained(self, folder):
        pass

    @classmethod
    def _from_pretrained(cls, *, model_id, cfg, **_):
        return cls(cfg)


Model(CfgNode({"MODEL": {"WEIGHTS": "/home/me/secret.pth", "MEAN": (1.0, 2.0)}})).save_pretrained("m")
print("config.json:", Path("m/config.json").read_text().replace("\n", ""))
cfg = Model.from_pretrained("m").cfg
print("cfg:", type(cfg).__name__, "MEAN:", type(cfg["MODEL"]["MEAN"]).__name__)
assert type(cfg) is dict and "secret" in Path("m/config.json").read_text()
PYTHON
