package android.content.res

import android.os.ParcelFileDescriptor

abstract class AssetManager {
    abstract fun list(path: String): Array<String>?
    abstract fun openFd(fileName: String): AssetFileDescriptor
}

abstract class AssetFileDescriptor {
    abstract val parcelFileDescriptor: ParcelFileDescriptor
    abstract val startOffset: Long
    abstract val length: Long
}
