// The test of the Kotlin library on the JVM: the conformance suite, and the behaviour of the API.
package dev.molkv

import java.io.File
import kotlin.system.exitProcess

/** Run the tests. The system property molkv.bundles is the folder runtimes/conformance/bundles. */
fun main() {
    val bundles = File(System.getProperty("molkv.bundles"))
    val behaves = Behaviour(bundles).run()
    val conforms = Conformance(bundles.parentFile).use(Conformance::run)
    exitProcess(if (behaves && conforms) 0 else 1)
}
