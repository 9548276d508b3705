# Sourced by the drills that need the lowest torch that pyproject.toml allows: activates an environment with it.
#
# Takes `root`, the root folder, and `work`, a temporary folder, in which the package then has its own name. Sets
# `lowest`. Makes the environment in `work`, unless CISTRON_VENV names one.
lowest=2.11
if [ -z "${CISTRON_VENV:-}" ]; then
    CISTRON_VENV=$work/venv
    python3 -m venv "$CISTRON_VENV"
    "$CISTRON_VENV/bin/pip" install --quiet "torch==$lowest.*" 'torchao>=0.18' -e "$root[dev]"
fi
. "$CISTRON_VENV/bin/activate"
ln -s "$root" "$work/cistron"  # the root folder is the package, whatever it is called
export PYTHONPATH=$work OMP_NUM_THREADS=1
