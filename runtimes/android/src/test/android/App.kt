package android.app

import android.content.Context
import android.content.res.AssetManager
import android.os.Bundle
import android.view.View

abstract class Activity : Context() {
    override val assets: AssetManager get() = TODO()
    protected open fun onCreate(savedInstanceState: Bundle?): Unit = TODO()
    protected open fun onDestroy(): Unit = TODO()
    open fun setContentView(view: View): Unit = TODO()
}
