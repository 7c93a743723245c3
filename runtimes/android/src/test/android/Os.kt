package android.os

class Bundle

abstract class ParcelFileDescriptor {
    abstract fun detachFd(): Int
}
