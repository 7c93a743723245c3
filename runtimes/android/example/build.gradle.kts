plugins { id("com.android.application") }

android {
    namespace = "molkv.example"
    compileSdk = 36
    defaultConfig { minSdk = 27 }
    assetPacks += file("../asset-packs").list().orEmpty().map { ":$it" }
    // The driver reads files in place, which is not possible if they are compressed.
    androidResources { noCompress += listOf("data", "jinja", "json", "onnx", "ort", "safetensors") }
}

dependencies {
    implementation(project(":molkv"))
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.10.2")
}
