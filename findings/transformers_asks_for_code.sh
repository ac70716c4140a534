#!/usr/bin/env bash
# Expected: without trust_remote_code=True no code of a model's folder runs. Where nothing is said,
# AutoConfig asks on the terminal: what comes from a pipe as `y`, as of `yes |`, runs it.
# open_clip 3.3 says nothing when it builds a text tower of transformers.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment transformers==5.24.0
mkdir model
export HF_MODULES_CACHE=$folder/modules
echo '{"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}}' >model/config.json
cat >model/configuration_mine.py <<-'PYTHON'
	from pathlib import Path

	from transformers import PretrainedConfig

	Path("ran").touch()


	class Mine(PretrainedConfig):
	    model_type = "mine"
PYTHON
load='import sys; from transformers import AutoConfig; AutoConfig.from_pretrained("model", **eval(sys.argv[1]))'
yes | "$PYTHON" -c "$load" 'dict(trust_remote_code=False)' >/dev/null 2>&1 && exit 1
[ ! -e ran ]
echo "trust_remote_code=False: nothing ran"
set +o pipefail
yes | "$PYTHON" -c "$load" '{}' >/dev/null 2>&1
[ -e ran ]
echo "nothing said, and y on the standard input: the code ran"
