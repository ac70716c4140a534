#!/usr/bin/env bash
# Expected: a model class on ModelHubMixin that loads from a complete cache with a network loads from
# it without one. Its from_pretrained asks for a config.json that such a model need not have: with a
# network its absence is logged, offline it ends in LocalEntryNotFoundError, although all files are
# there.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment huggingface_hub==2.4.0
export HF_HUB_OFFLINE=1 HF_HOME=$folder/cache
commit=0123456789012345678901234567890123456789
model=cache/hub/models--somebody--model
mkdir -p "$model/refs" "$model/snapshots/$commit"
printf %s "$commit" >"$model/refs/main"
printf weights >"$model/snapshots/$commit/weights.bin"
"$PYTHON" - <<'PYTHON'
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError


class Model(ModelHubMixin):
    @classmethod
    def _from_pretrained(cls, *, model_id, **_):
        return open(hf_hub_download(model_id, "weights.bin")).read()


print("hf_hub_download:", open(hf_hub_download("somebody/model", "weights.bin")).read())
try:
    Model.from_pretrained("somebody/model")
except LocalEntryNotFoundError as error:
    print("from_pretrained:", type(error).__name__)
else:
    raise SystemExit("from_pretrained: loaded")
PYTHON
