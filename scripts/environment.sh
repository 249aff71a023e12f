# Sourced by demo.sh and test.sh. Make .venv once and install the project with pinned versions.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
# Modules are compiled at their first import, which takes less time than compiling all of them at once. Where nothing
# may be written, every process would compile PyTorch and transformers again, and take 10 seconds to start, not 4.
unset PYTHONDONTWRITEBYTECODE
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; set PYTHON to one" >&2
    exit 2
}
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo "making .venv"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
    echo "$wanted" >.venv/installed
fi
