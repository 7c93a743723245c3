// Bundles in the assets of an app or its asset packs. The only file that needs the Android SDK.
package dev.molkv

import android.content.res.AssetManager
import java.io.FileNotFoundException

/**
 * Open the bundle in a folder of the assets, in place. The assets must not be compressed: the app lists the endings of
 * their names in `androidResources.noCompress`.
 */
fun MolkvModel.Companion.open(
    assets: AssetManager,
    folder: String,
    options: ModelOptions = ModelOptions(),
): MolkvModel {
    val names = assets.list(folder).orEmpty()
    return open(FileOpener { if (it in names) assets.region("$folder/$it") else null }, options)
}

private fun AssetManager.region(path: String): FileRegion = try {
    openFd(path).let { FileRegion(it.parcelFileDescriptor.detachFd(), it.startOffset, it.length) }
} catch (error: FileNotFoundException) {
    throw MolkvException.Bundle("asset $path: found a compressed file, expected noCompress for its ending ($error)")
}
