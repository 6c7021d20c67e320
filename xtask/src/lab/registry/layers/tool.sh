printf '#!/bin/sh\necho "tool 1: $*"\n' >bin/tool
chmod 0755 bin/tool
