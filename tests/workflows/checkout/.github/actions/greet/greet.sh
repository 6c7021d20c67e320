#!/bin/bash
set -eu
test "$# [$1] [$2] [$3]" = '3 [two words] [a "quoted" one] []'
test "$INPUT_WHO $FROM_MANIFEST $PWD" = "Mona the Octocat 1 /github/workspace"
echo "hello $INPUT_WHO"
echo "greeted=$INPUT_WHO" >> "$GITHUB_OUTPUT"
echo "who=$INPUT_WHO" >> "$GITHUB_STATE"
