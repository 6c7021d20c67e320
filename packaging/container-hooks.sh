#!/bin/sh
# Named by ACTIONS_RUNNER_CONTAINER_HOOKS: the official runner starts only files called *.sh, *.js or *.ps1.
# exec, so that the runner's cancel signals reach the program itself; no stdin, no output, no use of PATH.
exec /usr/lib/runner/container-hooks
