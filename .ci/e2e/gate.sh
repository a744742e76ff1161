#!/bin/bash
# End to end: what a child may make us open. See gate_trace.py, which does it; here is what it needs.
#
# Usage: .ci/e2e/gate.sh [path of the diffdisk binary [opens in the race]]
set -euo pipefail
# shellcheck source=.ci/e2e/lib.sh
source "$(dirname "$0")/lib.sh" "$@"

need strace strace
strace -qq -o /dev/null true 2>/dev/null || skip "strace may not trace here"
"$python" "$here/gate_trace.py" "$diffdisk" "$work/gate" "${2:-150}"
