#!/bin/bash
set -eu
test "$STATE_who" = "$INPUT_WHO"
echo "bye $STATE_who"
