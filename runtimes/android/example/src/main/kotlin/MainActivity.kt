package molkv.example

import android.app.Activity
import android.os.Bundle
import android.widget.TextView
import dev.molkv.*
import kotlinx.coroutines.*
import kotlinx.coroutines.flow.flowOn

/** Shows the report of the self-test, then a text that grows. */
class MainActivity : Activity() {
    private val scope = MainScope()
    private val prompt = "def "

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val view = TextView(this)
        setContentView(view)
        scope.launch {
            try {
                show(view)
            } catch (error: MolkvException) {
                view.append("\nerror: ${error.message}")
            }
        }
    }

    private suspend fun show(view: TextView) {
        withContext(Dispatchers.Default) { MolkvModel.open(assets, "molkv") }.use { model ->
            view.append(withContext(Dispatchers.Default) { model.selfTest() })
            view.append("\nself-test: passed\n\n$prompt")
            model.session().use { session ->
                val tokens = session.generate(prompt, GenerationOptions(maxNewTokens = 64))
                tokens.flowOn(Dispatchers.Default).collect { view.append(it.text) }
            }
        }
    }

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }
}
