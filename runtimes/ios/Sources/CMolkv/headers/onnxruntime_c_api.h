/* The header under the name that the driver includes. Apple's frameworks have it in a folder of their name. */
#include <onnxruntime/onnxruntime_c_api.h>
