#!/usr/bin/env bash
# An unattended session on Kaggle, for which this machine brings up the servers: `. kaggle.sh` or
# `bash kaggle.sh`, from bash or zsh. What the environment does not say is asked for;
# `cah guide kaggle` lists the variables.
# All of it happens in a subshell, so the shell that sources this stays as it was.
# shellcheck disable=SC2128  # the first element is meant; other shells have no arrays
(
    set +eu
    if [ -n "${ZSH_VERSION:-}" ]; then
        eval 'here=${(%):-%x}'
        emulate sh
    else
        here=${BASH_SOURCE:-$0}
    fi
    root=$(\command dirname -- "$here") || exit 1
    root=$(CDPATH="" \command cd -- "$root" >/dev/null && \command pwd) || exit 1
    python=${CAH_PYTHON:-$root/.venv/bin/python}
    if [ -z "${CAH_PYTHON:-}" ]; then
        [ -x "$python" ] || python3 -m venv "$root/.venv" || exit 1
        "$python" -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("cahlib", "hcloud", "paramiko", "kaggle"))))' ||
            "$python" -m pip install --quiet --editable "${root}[swarm,kaggle]" || exit 1
    fi
    exec "$python" -m cahlib.kaggle
) || case $- in
*e*) echo "kaggle.sh: it did not work; see above." >&2 ;; # a failure would end this shell
*) (exit "$?") ;;
esac
