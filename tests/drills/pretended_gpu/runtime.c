/* Answers of the CUDA runtime, and of torch's c10::cuda on top of it, that a process without a GPU must have: torch asks
 * while it is imported, and before operators on fake CUDA tensors. Loaded by LD_PRELOAD. Everything returns success (0). */

enum { DEVICES = 8, CUDA_VERSION = 13000 };
enum { MULTIPROCESSORS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, SHARED_MEMORY_OPTIN = 97 }; /* cudaDeviceAttr */

int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { (void)device; return 0; }
int cudaGetDeviceCount(int *count) { *count = DEVICES; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaDriverGetVersion(int *version) { *version = CUDA_VERSION; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = CUDA_VERSION; return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return 0; }
int cudaThreadExchangeStreamCaptureMode(int *mode) { (void)mode; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { (void)device; (void)peer; *can = 1; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == CAPABILITY_MAJOR      ? 9
             : attribute == CAPABILITY_MINOR    ? 0
             : attribute == MULTIPROCESSORS     ? 132
             : attribute == SHARED_MEMORY_OPTIN ? 232448
                                                : 0;
    return 0;
}

/* c10::cuda::MaybeSetDevice, ExchangeDevice, MaybeExchangeDevice, hasPrimaryContext, SetDevice */
int _ZN3c104cuda14MaybeSetDeviceEa(signed char device) { (void)device; return 0; }
signed char _ZN3c104cuda14ExchangeDeviceEa(signed char device) { (void)device; return 0; }
signed char _ZN3c104cuda19MaybeExchangeDeviceEa(signed char device) { (void)device; return 0; }
_Bool _ZN3c104cuda17hasPrimaryContextEa(signed char device) { (void)device; return 0; }
int _ZN3c104cuda9SetDeviceEab(signed char device, _Bool force) { (void)device; (void)force; return 0; }
int _ZN3c104cuda9SetDeviceEa(signed char device) { (void)device; return 0; }
