/* libcuda.so.1 of a machine without a driver: torch and Triton need its symbols to be loaded at all. None is called but
 * cuGetProcAddress, which finds nothing (1). */

#define ANSWER(name, value) \
    int name(void) { return value; }

ANSWER(cuGetProcAddress_v2, 1)
ANSWER(cuCtxGetCurrent, 0)
ANSWER(cuCtxSetCurrent, 0)
ANSWER(cuDeviceGet, 0)
ANSWER(cuDeviceGetAttribute, 0)
ANSWER(cuDevicePrimaryCtxGetState, 0)
ANSWER(cuDevicePrimaryCtxRetain, 0)
ANSWER(cuFuncGetAttribute, 0)
ANSWER(cuFuncSetAttribute, 0)
ANSWER(cuFuncSetCacheConfig, 0)
ANSWER(cuGetErrorString, 0)
ANSWER(cuLaunchCooperativeKernel, 0)
ANSWER(cuLaunchKernel, 0)
ANSWER(cuLinkAddData_v2, 0)
ANSWER(cuLinkComplete, 0)
ANSWER(cuLinkCreate_v2, 0)
ANSWER(cuModuleGetFunction, 0)
ANSWER(cuModuleLoad, 0)
ANSWER(cuModuleLoadData, 0)
ANSWER(cuModuleLoadDataEx, 0)
ANSWER(cuModuleUnload, 0)
ANSWER(cuOccupancyMaxActiveBlocksPerMultiprocessor, 0)
ANSWER(cuPointerGetAttribute, 0)
ANSWER(cuTensorMapEncodeTiled, 0)
