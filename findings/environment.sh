# Sourced by the scripts beside it: `environment NAME==VERSION...` makes $PYTHON, in a folder that
# goes at the end, a Python with these packages. FINDINGS_PYTHON names one that has them already.
# detectron2==0.6 is the pure-Python build of tools/install_detectron2.py: the sdist pb1-detectron2
# 0.6, the Python files of the official tag v0.6, whose edits for newer numpy, Pillow and Python
# (tools/detectron2_edits.json) touch nothing that is shown here.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tools" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
export PYTHONWARNINGS=ignore

# What detectron2 needs to be installed and imported.
detectron2_needs=(torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 Pillow==12.3.0 pycocotools==2.0.11
	matplotlib==3.11.2 tensorboard==2.21.0 tabulate==0.10.0 tqdm==4.70.1
	fvcore==0.1.5.post20221221 iopath==0.1.10 yacs==0.1.8 omegaconf==2.3.1 hydra-core==1.3.8
	cloudpickle==3.1.2 termcolor==3.3.0 setuptools==80.10.2)

environment() {
	PYTHON=${FINDINGS_PYTHON:-}
	if [ -z "$PYTHON" ]; then
		python3 -m venv venv
		PYTHON=$folder/venv/bin/python
		local package packages=()
		for package in "$@"; do
			[ "$package" = detectron2==0.6 ] || packages+=("$package")
		done
		"$PYTHON" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
		case " $* " in *" detectron2==0.6 "*) "$PYTHON" "$tools/install_detectron2.py" ;; esac
	fi
	"$PYTHON" - "$@" <<-'PYTHON'
		import platform, sys
		from importlib.metadata import version

		print("Python", platform.python_version())
		for package in sys.argv[1:]:
		    name, wanted = package.split("==")
		    if version(name) != wanted:
		        sys.exit(f"{name}: found {version(name)}, expected {wanted}")
		    print(name, wanted)
	PYTHON
}
