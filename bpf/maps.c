// SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0
/* No program: this object is compiled for its maps and types alone. The agent
 * creates and pins the maps from it, and Go's key and value types are made
 * from its BTF. */
#include "lib/maps.h"

char _license[] SEC("license") = "GPL";

/* Enums reach BTF only if something uses them. */
const volatile enum counter counter_names;
const volatile enum network_kind network_kinds;
const volatile enum service_flags service_flag_names;
const volatile enum flow_flags flow_flag_names;
