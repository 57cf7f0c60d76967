/* A libnvidia-ml.so.1 without a driver: every answer is read from the text file $NVML_STUB at the time of the call.
 *
 * A line is `key value`; keys of a device begin with its number (`0.name NVIDIA L40S`). `error N` fails nvmlInit and the
 * enumeration, `hang 1` hangs in them, `crash 1` kills the process; `0.error N` fails all that asks for device 0, and
 * `0.hang 1` hangs there. What has no line is answered NOT_SUPPORTED.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, INVALID = 2 };
#define DEVICES 16
#define INSTANCES 16
typedef struct { int gpu, gi, nth; } Thing; /* a GPU (gi -1), a GPU instance (nth -1) or a MIG device */
static Thing gpus[DEVICES], gis[DEVICES * INSTANCES], migs[DEVICES * INSTANCES];
static int xid_seen[DEVICES];
#define STUB_FILE "NVML_STUB"
#include "stubfile.h"

static int text(const char *said, char *out, unsigned size) {
    if (said) snprintf(out, size, "%s", said);
    return said ? OK : NOT_SUPPORTED;
}
static int whole_error(void) { trouble(); const char *said = find("error"); return said ? atoi(said) : OK; }
static int device_error(int gpu) {
    int error = whole_error();
    if (error) return error;
    hang_while(gpu, "hang");
    const char *said = of(gpu, "error");
    return said ? atoi(said) : OK;
}
#define BEGIN(thing) int gpu = ((Thing *)(thing))->gpu, error = device_error(gpu); if (error) return error;
#define NUMBER(name, key, type) int name(Thing *t, type *out) { BEGIN(t) const char *s = of(gpu, key); \
    if (s) *out = (type)atoll(s); \
    return s ? OK : NOT_SUPPORTED; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return whole_error(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    switch (code) {
    case 3: return "Not Supported"; case 9: return "Driver Not Loaded"; case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch"; case 999: return "Unknown Error"; default: return "Error";
    }
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) { int e = whole_error(); return e ? e : text(find("driver"), out, size); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    int error = whole_error(); const char *said = find("cuda");
    if (error || !said) return error ? error : NOT_SUPPORTED;
    *out = atoi(said); return OK;
}
int nvmlDeviceGetCount_v2(unsigned *out) {
    int error = whole_error(); const char *said = find("count");
    if (error) return error;
    *out = said ? (unsigned)atoi(said) : 0; return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Thing **out) {
    int error = device_error((int)index);
    if (error) return error;
    gpus[index] = (Thing){(int)index, -1, -1};
    *out = &gpus[index]; return OK;
}
int nvmlDeviceGetName(Thing *t, char *out, unsigned size) {
    BEGIN(t)
    if (t->nth >= 0) { snprintf(out, size, "%s MIG %s", of(gpu, "name"), "1g.1gb"); return OK; }
    return text(of(gpu, "name"), out, size);
}
int nvmlDeviceGetUUID(Thing *t, char *out, unsigned size) {
    BEGIN(t)
    if (t->nth >= 0) { /* instance.N: profile start size memory uuid */
        char uuid[96]; const char *s = ofn(gpu, "instance", t->nth);
        if (!s || sscanf(s, "%*d %*d %*d %*d %95s", uuid) != 1) return NOT_FOUND;
        return text(uuid, out, size);
    }
    return text(of(gpu, "uuid"), out, size);
}
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
static int pci(const char *address, unsigned id, Pci *out) {
    if (!address) return NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    sscanf(address, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    out->id = id << 16 | 0x10de;
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff, out->device & 0xff);
    snprintf(out->bus_id, sizeof out->bus_id, "%08X:%02X:%02X.0", out->domain, out->bus, out->device);
    return OK;
}
int nvmlDeviceGetPciInfo_v3(Thing *t, Pci *out) {
    BEGIN(t) const char *id = of(gpu, "pci_id");
    return pci(of(gpu, "address"), id ? (unsigned)strtoul(id, NULL, 16) : 0, out);
}
int nvmlDeviceGetCudaComputeCapability(Thing *t, int *major, int *minor) {
    BEGIN(t) const char *said = of(gpu, "cc");
    return said && sscanf(said, "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
int nvmlDeviceGetMemoryInfo(Thing *t, Memory *out) {
    BEGIN(t) const char *total = of(gpu, "memory"), *used = of(gpu, "used");
    if (!total || t->nth >= 0) return NOT_SUPPORTED;
    out->total = strtoull(total, NULL, 10) << 20; out->used = (used ? strtoull(used, NULL, 10) + 512 : 512) << 20;
    out->free = out->total - out->used; return OK;
}
int nvmlDeviceGetMemoryInfo_v2(Thing *t, Memory2 *out) {
    BEGIN(t) const char *total = of(gpu, "memory"), *used = of(gpu, "used");
    if (!total || t->nth >= 0) return NOT_SUPPORTED;
    out->total = strtoull(total, NULL, 10) << 20; out->used = used ? strtoull(used, NULL, 10) << 20 : 0;
    out->reserved = 512ull << 20; out->free = out->total - out->used - out->reserved; return OK;
}
NUMBER(nvmlDeviceGetNumaNodeId, "numa", int)
NUMBER(nvmlDeviceGetPowerUsage, "power", unsigned)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit", unsigned)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, "throttle", unsigned long long)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, "retire_pending", unsigned)
int nvmlDeviceGetTemperature(Thing *t, int sensor, unsigned *out) {
    BEGIN(t) (void)sensor; const char *s = of(gpu, "temperature");
    if (!s) return NOT_SUPPORTED;
    *out = (unsigned)atoi(s); return OK;
}
int nvmlDeviceGetTotalEccErrors(Thing *t, int kind, int counter, unsigned long long *out) {
    BEGIN(t) const char *s = of(gpu, counter ? (kind ? "ecc_uncorrected" : "ecc_corrected") : (kind ? "ecc_volatile" : "-"));
    if (!s) return NOT_SUPPORTED;
    *out = strtoull(s, NULL, 10); return OK;
}
int nvmlDeviceGetRemappedRows(Thing *t, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    BEGIN(t) const char *s = of(gpu, "rows");
    return s && sscanf(s, "%u %u %u %u", corrected, uncorrected, pending, failed) == 4 ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetRetiredPages_v2(Thing *t, int cause, unsigned *count, unsigned long long *pages, unsigned long long *times) {
    BEGIN(t) const char *s = ofn(gpu, "retired", cause);
    if (!s) return NOT_SUPPORTED;
    unsigned n = (unsigned)atoi(s);
    if (!pages) { *count = n; return n ? INSUFFICIENT_SIZE : OK; }
    for (unsigned i = 0; i < n; i++) pages[i] = times[i] = i;
    *count = n; return OK;
}
int nvmlDeviceGetRetiredPages(Thing *t, int cause, unsigned *count, unsigned long long *pages) {
    unsigned long long times[64];
    return nvmlDeviceGetRetiredPages_v2(t, cause, count, pages, times);
}

/* --- MIG: `mig 0|1`, `profile.INDEX ID NAME SLICES MAX MIB SIZE START,START…`, `instance.N ID START SIZE MIB UUID` --- */
int nvmlDeviceGetMigMode(Thing *t, unsigned *now, unsigned *next) {
    BEGIN(t) const char *s = of(gpu, "mig");
    if (!s) return NOT_SUPPORTED;
    *now = *next = (unsigned)atoi(s); return OK;
}
typedef struct { unsigned version, id, p2p, slices, instances, sm, copy, decoder, encoder, jpeg, ofa;
    unsigned long long memory; char name[96]; } Profile;
int nvmlDeviceGetGpuInstanceProfileInfoV(Thing *t, unsigned number, Profile *out) {
    BEGIN(t) char name[64]; const char *s = ofn(gpu, "profile", (int)number);
    if (!s || sscanf(s, "%u %63s %u %u %llu", &out->id, name, &out->slices, &out->instances, &out->memory) != 5)
        return NOT_SUPPORTED;
    snprintf(out->name, sizeof out->name, "MIG %s", name); return OK;
}
typedef struct { unsigned start, size; } Placement;
int nvmlDeviceGetGpuInstancePossiblePlacements_v2(Thing *t, unsigned id, Placement *out, unsigned *count) {
    BEGIN(t)
    for (int number = 0; number < 18; number++) {
        unsigned own, size, n = 0; int used; const char *s = ofn(gpu, "profile", number);
        if (!s || sscanf(s, "%u %*s %*u %*u %*u %u %n", &own, &size, &used) != 2 || own != id) continue;
        for (const char *at = s + used; at && *at; at = strchr(at, ','), at = at ? at + 1 : at, n++)
            if (out) out[n] = (Placement){(unsigned)atoi(at), size};
        *count = n; return OK;
    }
    return NOT_SUPPORTED;
}
int nvmlDeviceGetMaxMigDeviceCount(Thing *t, unsigned *out) { BEGIN(t) *out = of(gpu, "mig") ? 7 : 0; return OK; }
static int live(int gpu, int n) { char uuid[96]; const char *s = ofn(gpu, "instance", n); /* a compute instance in it? */
    return s && sscanf(s, "%*d %*d %*d %*d %95s", uuid) == 1; }
int nvmlDeviceGetMigDeviceHandleByIndex(Thing *t, unsigned index, Thing **out) {
    BEGIN(t)
    if (!live(gpu, (int)index)) return NOT_FOUND;
    Thing *mig = &migs[gpu * INSTANCES + (int)index];
    *mig = (Thing){gpu, (int)index, (int)index}; *out = mig; return OK;
}
int nvmlDeviceGetGpuInstanceId(Thing *t, unsigned *out) { BEGIN(t) *out = (unsigned)t->gi; return t->gi < 0 ? INVALID : OK; }
int nvmlDeviceGetGpuInstanceById(Thing *t, unsigned id, Thing **out) {
    BEGIN(t) Thing *gi = &gis[gpu * INSTANCES + (int)id];
    *gi = (Thing){gpu, (int)id, -1}; *out = gi; return ofn(gpu, "instance", (int)id) ? OK : NOT_FOUND;
}
int nvmlDeviceGetGpuInstances(Thing *t, unsigned profile, Thing **out, unsigned *count) {
    BEGIN(t) unsigned n = 0, own;
    for (int i = 0; i < INSTANCES; i++) {
        const char *s = ofn(gpu, "instance", i);
        if (s && sscanf(s, "%u", &own) == 1 && own == profile) nvmlDeviceGetGpuInstanceById(t, (unsigned)i, &out[n++]);
    }
    *count = n; return OK;
}
typedef struct { Thing *device; unsigned id, profile; Placement placement; } GpuInstance;
int nvmlGpuInstanceGetInfo(Thing *gi, GpuInstance *out) {
    BEGIN(gi) const char *s = ofn(gpu, "instance", gi->gi);
    if (!s || sscanf(s, "%u %u %u", &out->profile, &out->placement.start, &out->placement.size) != 3) return NOT_FOUND;
    out->device = &gpus[gpu]; out->id = (unsigned)gi->gi; return OK;
}
typedef struct { unsigned sm, copy, decoder, encoder, jpeg, ofa, gi_slices, ci_slices; unsigned long long memory; } Attributes;
int nvmlDeviceGetAttributes_v2(Thing *t, Attributes *out) {
    BEGIN(t) const char *s = ofn(gpu, "instance", t->nth);
    memset(out, 0, sizeof *out);
    if (!s || sscanf(s, "%*u %*u %u %llu", &out->gi_slices, &out->memory) != 2) return NOT_SUPPORTED;
    out->ci_slices = out->gi_slices; return OK;
}

/* --- links: `switches N` (NVLinks to an NVSwitch), `peer.LINK N` (an NVLink to GPU N), `near.N LEVEL` --- */
int nvmlDeviceGetNvLinkState(Thing *t, unsigned link, unsigned *out) {
    BEGIN(t) const char *s = of(gpu, "switches");
    if ((s && (int)link < atoi(s)) || ofn(gpu, "peer", (int)link)) { *out = 1; return OK; }
    return INVALID;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(Thing *t, unsigned link, int *out) {
    BEGIN(t) *out = ofn(gpu, "peer", (int)link) ? 0 : 2; return OK;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(Thing *t, unsigned link, Pci *out) {
    BEGIN(t) const char *s = ofn(gpu, "peer", (int)link);
    return s ? pci(of(atoi(s), "address"), 0, out) : pci("0000:fe:00", 0x22a3, out);
}
int nvmlDeviceGetTopologyCommonAncestor(Thing *one, Thing *other, int *out) {
    BEGIN(one) const char *s = ofn(gpu, "near", other->gpu);
    if (!s) return NOT_SUPPORTED;
    *out = atoi(s); return OK;
}

/* --- critical errors: `xid CODE SERIAL` of a device; a serial not seen before is an event --- */
typedef struct { Thing *device; unsigned long long type, data; unsigned gi, ci; } Event;
int nvmlEventSetCreate(void **set) { static int one; *set = &one; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(Thing *t, unsigned long long types, void *set) { (void)types; (void)set; BEGIN(t) return OK; }
int nvmlEventSetWait_v2(void *set, Event *out, unsigned ms) {
    (void)set; (void)ms;
    int error = whole_error();
    if (error) return error;
    for (int gpu = 0; gpu < DEVICES; gpu++) {
        int code, serial; const char *s = of(gpu, "xid");
        if (!s || sscanf(s, "%d %d", &code, &serial) != 2 || serial <= xid_seen[gpu]) continue;
        xid_seen[gpu] = serial;
        memset(out, 0, sizeof *out);
        out->device = &gpus[gpu]; out->type = 8; out->data = (unsigned long long)code; return OK;
    }
    return TIMEOUT;
}
