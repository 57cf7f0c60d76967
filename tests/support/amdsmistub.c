/* The hand-written part of the libamd_smi.so stub; stublibs.py adds what follows from the installed amdsmi. */
#define STUB_FILE "AMDSMI_STUB"
#include "stubfile.h"
#include <stdint.h>
enum { NOT_SUPPORTED = 2 };
typedef void *Handle; /* the device's number + 1 */
static int whole_error(void) { trouble(); const char *said = find("error"); return said ? atoi(said) : 0; }
static int device_error(Handle handle, int *device) {
    int error = whole_error();
    *device = (int)(intptr_t)handle - 1;
    if (error) return error;
    hang_while(*device, "hang");
    const char *said = of(*device, "error");
    return said ? atoi(said) : 0;
}
#define BEGIN int device, error = device_error(handle, &device); if (error) return error;
static uint64_t number(const char *said) { return strtoull(said, NULL, 0); }
static int text(const char *said, char *out, unsigned size) {
    if (said) snprintf(out, size, "%s", said);
    return said ? 0 : NOT_SUPPORTED;
}
int amdsmi_init(uint64_t flags) { (void)flags; return whole_error(); }
int amdsmi_shut_down(void) { return 0; }
int amdsmi_get_socket_handles(uint32_t *count, Handle *out) {
    int error = whole_error();
    if (out) out[0] = (Handle)1;
    *count = 1;
    return error;
}
int amdsmi_get_processor_handles(Handle socket, uint32_t *count, Handle *out) {
    (void)socket;
    const char *said = find("count");
    *count = said ? (uint32_t)atoi(said) : 0;
    for (uint32_t i = 0; out && i < *count; i++) out[i] = (Handle)(intptr_t)(i + 1);
    return whole_error();
}
int amdsmi_get_gpu_device_bdf(Handle handle, uint64_t *out) {
    BEGIN
    unsigned domain, bus, slot, function; const char *s = of(device, "address");
    if (!s || sscanf(s, "%x:%x:%x.%u", &domain, &bus, &slot, &function) != 4) return NOT_SUPPORTED;
    *out = function | slot << 3 | bus << 8 | (uint64_t)domain << 16;
    return 0;
}
int amdsmi_get_gpu_device_uuid(Handle handle, uint32_t *size, char *out) {
    BEGIN return text(of(device, "uuid"), out, *size);
}
int amdsmi_get_gpu_compute_partition(Handle handle, char *out, uint32_t n) {
    BEGIN return text(of(device, "compute"), out, n);
}
int amdsmi_get_gpu_memory_partition(Handle handle, char *out, uint32_t n) {
    BEGIN return text(of(device, "nps"), out, n);
}
int amdsmi_topo_get_numa_node_number(Handle handle, uint32_t *out) {
    BEGIN
    const char *s = of(device, "numa");
    if (s) *out = (uint32_t)number(s);
    return s ? 0 : NOT_SUPPORTED;
}
int amdsmi_get_temp_metric(Handle handle, int sensor, int metric, int64_t *out) {
    BEGIN
    (void)sensor; (void)metric;
    const char *s = of(device, "temperature");
    if (s) *out = (int64_t)number(s);
    return s ? 0 : NOT_SUPPORTED;
}
int amdsmi_topo_get_link_type(Handle handle, Handle other, uint64_t *hops, uint32_t *type) {
    BEGIN
    const char *s = ofn(device, "link", (int)(intptr_t)other - 1);
    *hops = 1;
    if (s) *type = (uint32_t)number(s);
    return s ? 0 : NOT_SUPPORTED;
}
