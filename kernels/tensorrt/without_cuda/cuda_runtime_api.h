// The two names that TensorRT's headers want of CUDA's, where no CUDA toolkit is installed: searched last.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
