// The classes of the Android SDK that the library and the example use: declarations only, so that `make test-android`
// can compile these files without the SDK.
package android.content

import android.content.res.AssetManager

abstract class Context {
    abstract val assets: AssetManager
}
