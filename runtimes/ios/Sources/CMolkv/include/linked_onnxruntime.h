/* The function of ONNX Runtime that returns its API. It is in the library that the app is linked with. */
#ifndef LINKED_ONNXRUNTIME_H
#define LINKED_ONNXRUNTIME_H

struct OrtApiBase;
const struct OrtApiBase* OrtGetApiBase(void);

#endif
