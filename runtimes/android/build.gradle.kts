// The Android library: Kotlin, and the native driver as libmolkv_jni.so.
plugins { id("com.android.library") }

val onnxruntime = "com.microsoft.onnxruntime:onnxruntime-android:1.29.0"

// The AAR of ONNX Runtime holds the headers for C. Configuration `headers` resolves the AAR as a plain file.
val headers: Configuration by configurations.creating
val headersFolder = layout.buildDirectory.dir("onnxruntime")
val extractHeaders by tasks.registering(Copy::class) {
    from({ zipTree(headers.singleFile) }) { include("headers/**") }
    into(headersFolder)
}
tasks.configureEach { if (name.startsWith("configureCMake")) dependsOn(extractHeaders) }

android {
    namespace = "dev.molkv"
    compileSdk = 36
    defaultConfig {
        minSdk = 27
        consumerProguardFiles("consumer-rules.pro")
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
        externalNativeBuild {
            cmake {
                arguments += "-DONNXRUNTIME_INCLUDE_DIR=${headersFolder.get().dir("headers").asFile}"
                arguments += "-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON" // for devices with pages of 16 KB
                targets += "molkv_jni"
            }
        }
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
}

dependencies {
    headers("$onnxruntime@aar")
    implementation(onnxruntime)
    api("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.10.2")
}
