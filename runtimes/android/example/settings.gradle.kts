// The Gradle project of a package: this folder is the app, which uses the driver and the asset packs with the bundle.
pluginManagement {
    repositories { google(); mavenCentral() }
    plugins {
        id("com.android.application") version "9.0.0"
        id("com.android.library") version "9.0.0"
        id("com.android.asset-pack") version "9.0.0"
    }
}
dependencyResolutionManagement { repositories { google(); mavenCentral() } }

include(":molkv")
project(":molkv").projectDir = file("../runtimes/android")
for (pack in file("../asset-packs").list().orEmpty()) {
    include(":$pack")
    project(":$pack").projectDir = file("../asset-packs/$pack")
}
